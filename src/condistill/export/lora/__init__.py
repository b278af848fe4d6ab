"""LoRAs of a teacher, re-indexed so that they apply to its student."""
