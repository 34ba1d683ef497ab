--- GET /operations/{id}/events: an operation's event log as server-sent events.

local core = require "bough.core"
local errors = require "bough.error"
local http = require "bough.serve.http"
local validate = require "bough.serve.validate"

local M = {}

local KEEPALIVE = 10 -- seconds without an event
local START = 2 -- seconds that a follower waits here for the first event, which is nearly there: another try costs more
local MOST_ID = 1 << 53

local problem = http.fail

local params_schema = {
  follow = { "flag", default = false },
  spid = { "integer", min = 0, max = MOST_ID },
  since = { "integer", min = -MOST_ID, max = MOST_ID },
}

-- The header wins; what is no number there is as good as none.
local function cursor(request, params)
  local header = request.headers["last-event-id"]
  local id = header and #header < 17 and header:find "^%s*[-+]?%d+%s*$" and math.tointeger(tonumber(header))
  return id or params.since or -1
end

-- Both ends of the connection learn from it that the other is still there.
local function copy(out, reader, follow, last, expires)
  while (follow or reader.after < last) and not (expires and core.time() >= expires) do
    local text, over = reader:next(follow and KEEPALIVE or 0)
    if text then
      if not out:write(text) then return end
    elseif over or not follow then
      return
    elseif not out:write ": keepalive\n\n" then
      return
    end
  end
end

--- Sends the log from the beginning, or from behind an event on; with `follow`, until the operation ends. Waits.
function M.follow(app, request, id)
  local params = validate.params(request.params, params_schema)
  local log = app.operations:log(id)
  if not log then problem(404, ("operation %s has no events"):format(id), { kind = "not_found" }) end
  request:cancel_when_gone()
  if not log:begins(params.follow and START or 0) then
    problem(425, "the operation has not started yet", { kind = "busy", retry_after = 1 })
  end
  local after = cursor(request, params)
  local reader = log:reader(after, params.spid)
  if not log:has(after) then
    problem(410, "operation finished; events not yet durable", { kind = "not_found", retry_after = 3 })
  end
  local out <close> = request:stream(200, "text/event-stream")
  local good, raised = pcall(copy, out, reader, params.follow, log.last, request.token and request.token.expires)
  if good then return end
  if errors.is(raised, "cancelled") then error(raised, 0) end
  if app.log then
    app.log { event = "error", operation = id, request = request.id, error = tostring(raised) }
  end
  out:write(": stream ended with error, retry since last event id\n\nevent: sse_error\ndata: "
    .. (errors.is(raised) and raised.message or "upstream event source closed unexpectedly"):gsub("%c", " ") .. "\n\n")
end

--- How long a reader is left without a sign, in seconds. For tests.
---@param seconds number
---@return number before
function M.keepalive(seconds)
  local before = KEEPALIVE
  KEEPALIVE = seconds
  return before
end

return M
