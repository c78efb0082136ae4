"""A page to look through a labelled dataset, the likeliest mistakes of its labels first."""

KIND = "view of a dataset"  # as the mark of its folder says
PAGE, DATA, SUSPECTS = "index.html", "data.js", "suspects.jsonl"
STATIC = ("view.js", "view.css", PAGE)  # the page comes last: where it is, all is there
THUMBNAILS = "thumbs"
NAMES = (*STATIC, DATA, SUSPECTS, f"{THUMBNAILS}/*/*/*.jpg")
