"""Where images come from: archives, folders and packages."""
