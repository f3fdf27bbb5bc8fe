"""medsynth: 3D medical image synthesis, taught by implementing two papers completely.

One direction: data -> models -> training -> evaluation -> display; `course` runs the notebooks. See README.md.
"""
