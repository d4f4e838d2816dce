"""Files whose rows are samples, or fields of samples: csv files, arrays in npy, CelebA's lists, MATLAB's files of SVHN."""
