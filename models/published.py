"""The figures that the papers give for the networks: 20 classes, input 1024x512."""

from __future__ import annotations

from typing import Dict, Tuple

# Vallurupalli et al., CVPR-W 2018, Tables 3 to 5: (weights, GMAC to three decimals).
PUBLISHED: Dict[str, Tuple[int, float]] = {
    "erfnet-paper": (2_038_448, 27.705),
    "d-star": (547_120, 10.597),
    "dg2-star": (395_568, 8.852),
    "dg2s-star": (395_568, 8.852),
    "dg4-star": (319_792, 7.980),
    "dg4s-star": (319_792, 7.980),
    "dg8-star": (281_904, 7.543),
    "dg8s-star": (281_904, 7.543),
    "d-star-light": (431_312, 5.773),
    "dg2-star-light": (279_760, 4.029),
    "dg4-star-light": (203_984, 3.156),
    "d": (1_291_648, 19.025),
    "dg2": (1_238_960, 18.998),
    "dg2s": (1_238_960, 18.998),
    "dg4": (1_202_096, 18.595),
    "dg4s": (1_202_096, 18.595),
    "dg8": (1_183_664, 18.394),
    "dg8s": (1_183_664, 18.394),
}
# All trainable parameters of the public ERFNet at 20 classes, without the encoder's predictor (Romera et al.).
PUBLISHED_PARAMETERS: Dict[str, int] = {"erfnet": 2_064_256}
