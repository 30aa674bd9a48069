-- Whether sessions of this policy keep the secrets that agents write into them; otherwise they are redacted.
ALTER TABLE retention_policy ADD COLUMN keeps_secrets boolean NOT NULL DEFAULT false;
