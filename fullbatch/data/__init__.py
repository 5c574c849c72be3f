"""From files to blocks on the device: sets of images, augmentation, and the loader that makes blocks of them."""
