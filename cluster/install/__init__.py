"""What `make serve` runs to install Midstep, with nothing but Python."""
