"""What the losses take and give; imports numpy and torch at once, unlike the losses."""

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Counts = Int64[np.ndarray, "classes"]
Prior = Float64[np.ndarray, "classes"]
PerClass = Float64[np.ndarray, "classes"] | Int64[np.ndarray, "classes"]

Logits = Float[Tensor, "batch classes"]
Labels = Int64[Tensor, "batch"]
Targets = Int64[Tensor, "batch"] | Float[Tensor, "batch classes"]
Cost = Float[Tensor, "batch"]
Costs = Float[Tensor, "batch classes"]
Scalar = Float[Tensor, ""]
