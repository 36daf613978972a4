"""Jobs that generate images: the image files, animations and metric values that sample, evaluate and edit write."""
