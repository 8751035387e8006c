"""The life of LiteLLM API keys: create, list, change, rotate, delete, each audited, and who may see what. In reading order:

endpoint        API Gateway boundary: Request, Response, @endpoint; the only place an error becomes HTTP
jobs            the boundary of jobs, scheduled or invoked by an operator
custom_resource the boundary of what CloudFormation asks for in a release
authorizer      the boundary of the Lambda authorizer
callers         who calls, from a token's claims
snapshot        the hooks of Lambda SnapStart
wiring          builds the parts once per execution environment; the only reader of os.environ
creation        creating a key: the rules and the order of things (creation_store: its SQL)
alteration      changing a key, resetting its spend (alteration_store: its SQL)
deletion        deleting a key (deletion_store: its SQL)
rotation        giving a key another secret (rotation_store: its SQL)
revelation      showing a key's secret once more (revelation_store: its SQL)
listing         showing keys: one, the caller's, a user's, everybody's (listing_store: its SQL)
key_statistics  counting a caller's keys (key_statistics_store: its SQL)
validation      whether a secret is that of a working key (validation_store: its SQL)
litemaas_tokens checking the tokens that LiteMaaS itself issues
settlement      finishing what was interrupted, expiring keys (settlement_store: its SQL)
adoption        taking over the keys that LiteMaaS made (adoption_store: its SQL)
spend           bringing spend from LiteLLM into the rows (spend_store: its SQL)
operations      the operator's view of the journal (operations_store: its SQL)
reconciliation  comparing LiteLLM's keys with the database's and healing what differs (reconciliation_store: its SQL)
retirement      ending the secrets that a rotation has replaced (retirement_store: its SQL)
ending          ending tokens, for a delete and for a rotation's earlier secrets
issuing         having LiteLLM make a secret, for a create or a rotation (issuing_store: its SQL)
provenance      whether this database is the one LiteLLM's keys were made from
health          whether each backend answers
schema          applies migrations/*.sql
key_defaults    the defaults and maximums of keys (key_defaults_store: its SQL)
audit_trail     the audit records, page by page (audit_trail_store: its SQL)
standing        who may do what: the roles
model_catalog   the models LiteLLM serves, remembered for a minute
key_settings    what a key is allowed, as one value of SQL, and its ETag
key_rules       the rules that every key has to keep
key_status      what a key is at the moment, in one word of SQL
audit           the audit record of an operation that ended
journal         what every change shares: locks, whose change it is, giving an operation back
litellm         the LiteLLM client; the only module that imports httpx
derivation      deriving a key's secret with KMS
report_archive  keeping reports in S3
database        one connection per environment; reopens a stale one
parameters      values on their way to PostgreSQL and back
database_login  logging in there: a password, or a token signed by the function's role
secret_values   what the function's role gives: secrets of Secrets Manager, a login signed for RDS
aws             the AWS client of KMS and Secrets Manager, and who the function is for AWS
signatures      AWS's Signature Version 4
tls             whom TLS connections believe
queries         what the query strings of lists have in common: numbers, ids, moments, cursors
decoding        turns untrusted JSON into models and reports every violation at once
telemetry       the one logger and the one set of metrics
models          shapes: NewApiKey, Caller, PendingCreate, ListQuery
settings        Settings from a mapping
errors          the tree of failures, each with its HTTP status and code
"""
