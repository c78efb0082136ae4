"""The demo's questions and classes, for a Python whose forks need not read them again."""

from recipes.easy_vqa import data


data.counts(), data.parts()
