"""The registry's entries, a module per publisher, each fact with its source.

Where no primary source was at hand (the model card, the publishers' code or paper), the entry's
`unverified` names the field. Parameters are counted from the architecture, and agree with the
rounded numbers published. A `weights_sha256` or a `revision` stands only where it was seen.

Upstream examples build some networks with `dynamic_img_size=True`; at the trained size that changes
no number, so it is off here, except where the trained grid of positions is not the input's. No
publisher says of any of these models that it fails in fp16.
"""
