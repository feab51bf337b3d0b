"""The only importer of Ray and Ray Tune."""
