"""The types of the resource: the CRD, defaults and reference pages are generated from them."""
