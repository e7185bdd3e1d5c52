"""From configurations to trained seeds: placement, batches, programs, the loop."""
