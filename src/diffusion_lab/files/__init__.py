"""Files and folders: atomic writes, checks of files from other people, and folders of images."""
