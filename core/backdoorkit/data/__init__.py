"""Images, batches, augmentation, poisoning, splits and the built-in data sets."""
