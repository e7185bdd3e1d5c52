"""Sources of images and the task streams made of them."""
