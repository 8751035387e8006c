"""The life of LiteLLM API keys: create, list, delete, each with its audit record. In reading order:

endpoint    API Gateway boundary: Request, Response, @endpoint; the only place an error becomes HTTP
wiring      builds the parts once per execution environment; the only reader of os.environ
api_keys    ApiKeys: the rules of the service
health      whether each backend answers
schema      applies the SQL migrations
store       every SQL statement on keys and operations, beside the function that runs it
litellm     the LiteLLM client; the only module that imports httpx
derivation  deriving a key's secret with KMS
secret_values  reading Secrets Manager
database    one connection per environment; reopens a stale one
telemetry   the one logger and the one set of metrics
models      shapes: NewApiKey, Caller, Operation, ListQuery
decoding    turns untrusted JSON into models and reports every violation at once
settings    Settings from a mapping
errors      the tree of failures, each with its HTTP status and code
"""
