"""From files to blocks on the device: sets of pictures, augmentation, and the loader that makes blocks of them."""
