"""The other pretext tasks, whose training targets come from the images and clips themselves. One file each."""
