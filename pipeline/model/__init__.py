"""The method: frame features and class texts -> labels enriched by the video -> bag prediction.

Every parameter has a leading run axis R, so that folds and seeds train as one program; a single run
has R = 1. Axis letters: R run, B video, T frame, D feature, K class, N window, W token width.
"""
