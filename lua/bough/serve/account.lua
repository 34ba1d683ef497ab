--- GET /whoami: what a token is good for.

local json = require "bough.json"

local M = {}

local LAYER_BYTES = 12 << 30 -- what clients are told where there is no limit but the disk

local function limits_of(token)
  local limits = { instance_max_layer_bytes = LAYER_BYTES }
  for name, value in pairs(token.limits) do limits[name] = value end
  return limits
end

--- Answers with the token's permissions and limits, and what runs in its name.
function M.whoami(app, request)
  local token = request.token
  local counts = app.operations:running(token)
  request:reply(200, {
    token_uuid = token.uuid, token_expiration = token.expires and math.floor(token.expires) or json.null,
    permissions = token.permissions, limits = limits_of(token),
    operations_stat = {
      running_instances = counts.running_instances, running_imports = counts.running_imports,
    },
  })
end

return M
