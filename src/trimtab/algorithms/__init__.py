"""One file per algorithm: data and models in, terms and metrics out; the loop optimises them."""
