--- POST /instances: runs.

local auth = require "bough.serve.auth"
local body = require "bough.serve.body"
local errors = require "bough.error"
local http = require "bough.serve.http"
local record = require "bough.serve.record"
local sandbox = require "bough.serve.sandbox"

local M = {}

local problem = http.fail

local function find_image(app, ref)
  local good, image = pcall(app.box.images.get, app.box.images, ref)
  if good then return image end
  if not errors.is(image, "not_found") then error(image, 0) end
  problem(404, ("image %s not found"):format(ref), { kind = "not_found" })
end

--- Begins a run; the answer is its operation.
function M.spawn(app, request)
  local token = request.token
  local spec = body.spawn(app, request)
  if spec.disposable then
    auth.demand(token, "spawn", "spawn_disposable")
  else
    auth.demand(token, "spawn")
  end
  local image = find_image(app, spec.image)
  local most = token.limits.instance_max_concurrency
  -- nothing waits between the count and what counts
  if most and app.operations:running(token).running_instances >= most then
    problem(429, ("Max concurrency limit of %d instances reached for project"):format(most),
      { kind = "resource", retry_after = 1 })
  end
  local echo = record.encode(spec.echo)
  spec.echo = nil
  local operation = app.operations:create { kind = "instance", token = token, metadata = echo, image = image.uuid }
  sandbox.start(app, operation, image, spec, token.limits)
  request:send(201, "application/json",
    record.extend(echo, ('"uuid":"%s","result":null'):format(operation.uuid)),
    { Location = ("%s/v1/operations/%s"):format(app.config.base_path, operation.uuid) })
end

return M
