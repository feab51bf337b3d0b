"""What a run leaves in its folder: names, and how many of each."""

CHECKPOINTS = "checkpoints"
KEPT = 2  # of them: the newest, and the one before it in case that is damaged
GRID_IMAGES = 12  # of a picture, in two columns of three cells each: a square, which MLflow shows best
GRID_MIN_SIDE = 96  # pixels; smaller images are enlarged so that the picture can be looked at
