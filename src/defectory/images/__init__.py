"""Image files, in and out: every conversion is reported, every failure is one line.

- `header`: what the first bytes of a file show.
- `decode`: the pixels of a file with their original values, upright.
- `faults`: why a file cannot be read, in one line.
- `valuerange`: which value is black and which is white in images of more than 8 bits.
- `convert`: decoded pixels to 8-bit RGB.
- `facts`: size, values and remarks of files, remembered; the value range of a set.
- `load`: images as RGB and masks as class numbers, for the method.
- `frames`: images that are edited in places and written again as they were.
- `save`: PNG and JPEG files.
- `tiff`: TIFF files of any number type.
"""
