"""Trainable parameters of every named network, by number of classes: exact, auxiliary heads included."""

_ERFNET_ENCODER = {19: 1876495, 20: 1876624, 11: 1875463, 12: 1875592}
_EACNET_ERFNET = {19: 1877636, 20: 1877885, 11: 1875860, 12: 1876061}
_EACNET_DABNET = {19: 757784, 20: 758163, 11: 754968, 12: 755299}

# At 19 classes EACNet's are what its Tables 1 and 3 print in M; CARNet's are those of its Tables 1 (19) and 3 (150),
# AFFNet's that of its Table I.
PARAMETERS = {
    "erfnet": {19: 2066642, 20: 2066836, 11: 2065090, 12: 2065284},
    "erfnet_encoder": _ERFNET_ENCODER,
    "eacnet_erfnet": _EACNET_ERFNET,
    "eacnet_erfnet_nonlocal": _EACNET_ERFNET,
    "dabnet": {19: 756643, 20: 756902, 11: 754571, 12: 754830},
    "eacnet_dabnet": _EACNET_DABNET,
    "eacnet_dabnet_nonlocal": _EACNET_DABNET,
    "carnet_resnet50": {19: 28640595, 40: 28699752, 150: 29009622},
    "carnet_resnet101": {19: 47632723, 40: 47691880, 150: 48001750},
    "carnet_resnet152": {19: 63276371, 40: 63335528, 150: 63645398},
    "carnet_mobilenet": {19: 3887699, 40: 3946856, 150: 4256726},
    "affnet": {19: 1615346, 11: 1606122},
    "fast_scnn": {19: 1138051, 11: 1137019},
    "spssnet": {19: 1418499, 11: 1417467},
    "asap": {19: 11967737},  # 11,965,267 without the auxiliary heads
    # 5,695,987 of 19 classes without the auxiliary head.
    "ddrnet23_slim": {19: 5734342, 11: 5733302},
    # 7,625,715 of 19 classes without the heads that only training has.
    "pidnet_s": {19: 7720935, 11: 7718871},
    "cgnet": {19: 496306, 11: 494258},
    "espnet": {19: 362949, 20: 364569, 11: 353140, 12: 354193},
    "enet": {19: 351660, 20: 351804, 11: 350508, 12: 350652},
    "bisenetv2": {19: 5231487, 11: 5212375},  # 3,358,627 without the auxiliary heads
    "stdc1": {19: 8572896, 11: 8569824},  # 8,275,104 without the three training heads
    "stdc2": {19: 12603360, 11: 12600288},  # 12,305,568
}

# Pixels of the image per pixel of the logits, along each axis.
STRIDE = {name: 8 for name in PARAMETERS} | {
    "erfnet": 1,
    "espnet": 1,
    "enet": 1,
    "carnet_resnet50": 4,
    "carnet_resnet101": 4,
    "carnet_resnet152": 4,
    "carnet_mobilenet": 4,
}
