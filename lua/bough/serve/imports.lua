--- POST /images/import: images from registries.

local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"
local reference = require "bough.reference"
local http = require "bough.serve.http"
local validate = require "bough.serve.validate"

local M = {}

local MASKED = "<MASKED>"

local function registry_url(text)
  if not text:find "^docker://" then return nil, "must be docker://HOST/REPOSITORY:TAG" end
  local good, ref = pcall(reference.parse, text)
  if not good then return nil, "is no name in a registry: " .. ref.message end
  return text
end

local body_schema = {
  registry = { "object", required = true, fields = {
    url = { "string", required = true, max = 1024, test = registry_url },
    credentials = { "object", fields = {
      username = { "string", max = 1024 }, password = { "string", max = 64 << 10 },
    } },
  } },
  tag = { "string", test = function(tag) return tag == "" and tag or validate.tag(tag) end },
  timeout = { "integer", min = 1 },
}

local function is_local(host)
  host = host:gsub(":%d+$", "")
  return host == "localhost" or host == "[::1]" or host:find "^127%.%d+%.%d+%.%d+$" ~= nil
end

-- Whether images may come from there; whether without TLS, and whether only from outside of this machine. What listens
-- on this machine alone is for its own users, unless the operator says otherwise. A name may hide that, so that this is
-- the quick answer only: see `outside` of `core.http`.
local function check_host(config, ref)
  local insecure = config.insecure_registries[ref.domain] == true
  local named = insecure or config.registries ~= nil and config.registries[ref.domain] == true
  local allowed = named or not config.registries and not is_local(ref.domain)
  if not allowed then
    error(http.problem(403, ("imports from %s are not allowed here"):format(ref.domain), { kind = "denied" }), 0)
  end
  return insecure, not named
end

-- Empty strings mean nobody in particular.
local function login(credentials)
  local username = credentials and credentials.username ~= "" and credentials.username or nil
  local password = credentials and credentials.password ~= "" and credentials.password or nil
  if (username == nil) ~= (password == nil) then
    errors.raise("invalid", nil, "registry.credentials: %s is missing", username and "password" or "username")
  end
  return username, password
end

local function metadata(body, timeout)
  local credentials
  if body.registry.credentials then
    credentials = { username = body.registry.credentials.username or "", password = MASKED }
  end
  return {
    registry = { url = body.registry.url, credentials = credentials }, tag = body.tag or json.null, timeout = timeout,
  }
end

-- What to tell of a failure; secrets that a registry may have sent back are cut out.
local function failure(problem, password, timeout)
  if errors.is(problem, "timeout") and problem.op == "deadline" then
    return ("the import took longer than %d s"):format(timeout), "timeout"
  end
  local text = errors.is(problem) and problem.message or "internal error"
  if password then
    local at, stop = text:find(password, 1, true)
    while at do
      text = text:sub(1, at - 1) .. MASKED .. text:sub(stop + 1)
      at, stop = text:find(password, at + #MASKED, true)
    end
  end
  return text, errors.is(problem) and problem.kind or nil
end

local function work(app, operation, job)
  operation:advance "EXECUTING"
  local good, image = pcall(core.deadline, job.timeout, function()
    return app.box.images:import(job.url, {
      format = "registry", tag = job.tag or false, username = job.username, password = job.password,
      anonymous = job.username == nil or nil, insecure = job.insecure or nil,
      outside = job.outside or nil, max_bytes = job.max_bytes,
    })
  end)
  if good then
    operation:finish {
      status = "SUCCESS", result_image = image.uuid, tag = job.tag, image_size = image.size,
    }
  elseif job.cancelled or errors.is(image, "cancelled") then
    operation:finish { status = "CANCELLED" }
  else
    if not errors.is(image) then app.log { event = "error", operation = operation.uuid, error = tostring(image) } end
    local text, kind = failure(image, job.password, job.timeout)
    operation:finish { status = "FAILED", error = text, error_kind = kind }
  end
end

--- Starts an import; the answer is its operation.
function M.create(app, request)
  local body = validate.json(request, body_schema)
  local limits = request.token.limits
  local ref = reference.parse(body.registry.url)
  local insecure, outside = check_host(app.config, ref)
  local username, password = login(body.registry.credentials)
  local tag = body.tag ~= "" and body.tag or nil
  body.tag = tag
  local timeout = math.min(body.timeout or limits.images_import_max_timeout, limits.images_import_max_timeout)
  if app.operations:running(request.token).running_imports >= limits.images_import_max_concurrency then
    error(http.problem(429, ("Max concurrency limit of %d imports reached for project")
      :format(limits.images_import_max_concurrency), { kind = "resource", retry_after = 5 }), 0)
  end
  local operation = app.operations:create {
    kind = "image_import", token = request.token, metadata = metadata(body, timeout),
  }
  local job = {
    url = body.registry.url, tag = tag, username = username, password = password, insecure = insecure,
    outside = outside, timeout = timeout, max_bytes = limits.images_import_max_bytes,
  }
  local task = core.spawn(work, app, operation, job)
  operation:on_cancel(function()
    job.cancelled = true
    task:cancel()
  end)
  request:reply(201, { uuid = operation.uuid }, {
    Location = app.config.base_path .. "/v1/operations/" .. operation.uuid,
  })
end

return M
