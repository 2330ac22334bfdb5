"""The field's other tasks: questions whose answers the images and clips themselves give. One file each."""
