"""What finished runs say side by side: read from their own files, written as tables, curves and pictures."""
