"""A local web page: teacher and students side by side, the cache, and a distillation that is running."""
