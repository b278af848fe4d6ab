"""Everything that counts or times: multiply-accumulates, shapes, memory, seconds, forwards."""
