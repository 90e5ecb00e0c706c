"""Where images and masks come from, a file per kind of source: each lists its images as records."""

SAVED = 'a directory written by DatasetDict.save_to_disk, a folder with "data/<split>-*.parquet", a Hub id "user/name"'
KNOWN = (
    'a folder in the published layout of FIVES ("<split>/Original/*.png", "<split>/Ground truth/*.png"), a folder '
    'with "images" and "masks" or "labels" inside (or "train", "val", "test" with these, or these with those), a '
    "mapping or YAML file of images, masks, and optionally fields_of_view, condition_pattern, split, classes, "
    f'ignore_value, reduce_labels, group_pattern, {SAVED}, or "synthetic"'
)
