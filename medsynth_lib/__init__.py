"""medsynth: 3D medical image synthesis, taught by implementing two papers completely.

CONTRIBUTING.md draws the rooms of this library and which of them may import which; README.md says where to start.
"""
