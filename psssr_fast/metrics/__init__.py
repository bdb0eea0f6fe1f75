"""How good a restored video is: functions of frames ``[frames, 3, height, width]`` in [0, 1].

One module per metric; each gives one number per frame (or per pair of neighbours), so that a mean
can be taken, plotted or doubted.
"""
