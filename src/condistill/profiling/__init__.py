"""Everything that counts or times: shapes, multiply-accumulates, memory, seconds, forwards."""
