"""What the pages of datasets and students tell: Markdown templates, and what is put into them."""
