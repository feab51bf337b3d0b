"""Archives of images, read where they are: zip, LMDB, and TFRecords of StyleGAN. Nothing is extracted."""
