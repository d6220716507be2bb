"""The page for browsers at `/`, where people make pictures and watch them being made."""
