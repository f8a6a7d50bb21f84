"""What the samplers take and give; imports numpy at once, unlike the samplers."""

import numpy as np
from jaxtyping import Float64, Int64

Labels = Int64[np.ndarray, "photos"]
Draws = Int64[np.ndarray, "draws"]
Prior = Float64[np.ndarray, "classes"]
