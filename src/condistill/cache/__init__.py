"""Latents that the teacher generated, with their prompts, in Arrow shards with a manifest."""

from condistill.cache.latents import LatentCache, write_shard

__all__ = ["LatentCache", "write_shard"]
