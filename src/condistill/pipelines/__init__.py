"""What a finished pipeline directory is: saving, loading, sampling, and its model card."""
