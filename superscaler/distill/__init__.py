"""Distillation: a small draft learns what the model writes that it is to speculate for.

The model, served as ever, continues pieces of the user's text, and says with each token which ones it found likeliest
(`lesson`). The draft is then trained to find the same ones likely (`objective`), by a compiled training program
(`training`).
"""
