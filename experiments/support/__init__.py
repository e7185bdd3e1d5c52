"""What every other folder uses and what uses none of them."""
