"""What an image is in the prompts of each family: one file a family, `registry` chooses by the model folder.

Everything follows from an image's width and height, so that prompts are counted and built without its pixels. Which layout a
model has decides the text around its images too; the encoders are in `models/vision/`.
"""
