"""GradSeg: semantic segmentation from gradual-grouping training to a real-time video loop on edge hardware."""

__version__ = "0.1.0"
