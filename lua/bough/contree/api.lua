--- Calls to a ConTree service: what each of them has in common. Who we are, trying again, errors, limits, logs.

local core = require "bough.core"
local errors = require "bough.error"
local profile = require "bough.contree.profile"
local wire = require "bough.contree.wire"

local M = {}

local raise = errors.raise

local JSON_BYTES = 64 << 20
local ERROR_BYTES = 1 << 20
local MESSAGE_BYTES = 500
local TIMEOUT = 300 -- of a call, with all that is tried again
local SILENCE = 60 -- of a service that owes an answer
local CALLS = 100 -- at a time; streams are not counted
local LONGEST_TURN = 10 -- so long a call waits for its turn, and goes ahead then: see `enter`
local ATTEMPTS = 10
local FIRST_ATTEMPTS = 3 -- over connections, while nobody has ever answered
local PAUSES = { 0.1, 0.2, 0.5, 1, 2, 5 } -- the last one repeats
local RETRIES_PER_SECOND = 50 -- of all calls together, after as many at once
local EXPIRES_SOON = 600 -- seconds
local EVENTS = "text/event-stream"

--- A call: what is sent, and how it is to be understood.
---@class bough.contree.call
---@field op string what is being done, for messages: "images:list"
---@field method string? default "GET"
---@field path string below /v1, with segments escaped: "/images"
---@field query any[][]? for `wire.query`
---@field json table? the body; `wire.null` is sent as null
---@field body string|{ path: string, offset: integer?, size: integer? }|nil a body of bytes
---@field headers table<string, string>?
---@field accept string? media type
---@field retry boolean? true: may be sent again though it is POST or PATCH; false: is sent once and no more
---@field once boolean? is put on the wire at most once per attempt; default true for POST and PATCH
---@field timeout number? seconds for all attempts together; default that of the client, none with a file or a sink
---@field deadline number? the same as an instant of `core.now`; the nearer one counts
---@field stall_timeout number? seconds of silence that are suffered, default 60
---@field raw boolean? the body is not JSON and stays as it is
---@field expect "object"|"array"|"any"|nil what the JSON must be; default "object" for GET and PATCH, else "any",
---  which lets it be absent too
---@field sink userdata? a `core.sink`, which takes the body
---@field max_bytes integer? of the answer, default 64 MiB
---@field statuses table<integer, boolean>? besides 2xx, those that are no error
---@field on_transfer fun(bytes: integer)? told ten times a second how much of the body has been sent, or come; not of a
---  stream. May not wait

---@class bough.contree.answer
---@field status integer
---@field headers table<string, string> names in lower case
---@field body string? unless it went into a sink
---@field json table?

---@class bough.contree.retry
---@field attempts number? of one call at most, the first included; default 10, `math.huge` for no end
---@field unsafe boolean? POST and PATCH are repeated as if they were GET, so that a run may happen twice
---@field pauses number[]? seconds between attempts, the last one repeats
---@field per_second number? retries of all calls together, default 50

---@class bough.contree.api
---@field url string
---@field host string
---@field token string
---@field project string?
local api = {}
local api_meta = { __index = api, __name = "bough.contree.api" }

function api_meta:__tostring() return ("contree api at %s%s"):format(self.host, self.client and "" or " (closed)") end

-- Making one ---------------------------------------------------------------------------------------

local known = { "url", "token", "project", "user_agent", "ca_file", "verify", "proxy", "retry", "timeout",
  "connect_timeout", "log", "insecure", "max_calls" }

local function positive(value, name, otherwise)
  if value == nil then return otherwise end
  if type(value) ~= "number" or value ~= value or value <= 0 then
    raise("invalid", "contree", "%s must be a positive number, not %s", name, errors.quote(value))
  end
  return value
end

local function policy_of(retry)
  if retry == false then return { attempts = 1, off = true, pauses = PAUSES, interval = 0, burst = 0 } end
  if retry == true then retry = nil end
  retry = errors.check_keys("contree", retry, { "attempts", "unsafe", "pauses", "per_second" })
  local pauses = retry.pauses or PAUSES
  if type(pauses) ~= "table" or #pauses == 0 then
    raise("invalid", "contree", "retry.pauses must be a list of seconds")
  end
  for _, seconds in ipairs(pauses) do
    if type(seconds) ~= "number" or seconds ~= seconds or seconds < 0 or seconds == math.huge then
      raise("invalid", "contree", "retry.pauses holds %s, which is no number of seconds", errors.quote(seconds))
    end
  end
  local attempts = positive(retry.attempts, "retry.attempts", ATTEMPTS)
  if attempts < 1 or (attempts ~= math.huge and not math.tointeger(attempts)) then
    raise("invalid", "contree", "retry.attempts must be a whole number, not %s", tostring(attempts))
  end
  local per_second = positive(retry.per_second, "retry.per_second", RETRIES_PER_SECOND)
  return { attempts = attempts, unsafe = retry.unsafe == true, pauses = pauses, interval = 1 / per_second,
    burst = per_second }
end

local function user_agent(identity)
  if identity ~= nil and (type(identity) ~= "string" or identity:find "[^\32-\126]") then
    raise("invalid", "contree", "user_agent must be printable ASCII")
  end
  return ("%sbough libcurl Linux-%s"):format(identity and identity .. " " or "", core.machine())
end

--- Makes a client of one service. Asks it nothing yet.
---@param opts { url: string, token: string, project: string?, user_agent: string?, ca_file: string?, verify: boolean?,
---  proxy: string?, retry: bough.contree.retry|boolean|nil, timeout: number?, connect_timeout: number?,
---  log: fun(level: string, message: string, fields: table)?, insecure: boolean?, max_calls: integer? }
--- `user_agent`: who uses this library, in front of our own; `timeout`: of a call, with all its attempts, default 300;
--- `log`: gets "debug", "info" and "warning", never a secret, and must not wait; `max_calls`: at a time, default 100
---@return bough.contree.api
function M.new(opts)
  opts = errors.check_keys("contree", opts, known)
  local url = profile.base_url(opts.url, "url", "contree")
  if not opts.insecure then profile.check_encrypted(url, "contree") end
  if opts.log ~= nil and type(opts.log) ~= "function" then raise("invalid", "contree", "log must be a function") end
  local self = setmetatable({
    url = url, host = url:match "^%a+://([^/]*)",
    token = profile.check_token(opts.token, "token", "contree"),
    project = opts.project ~= "" and opts.project or nil,
    policy = policy_of(opts.retry),
    timeout = positive(opts.timeout, "timeout", TIMEOUT),
    connect_timeout = positive(opts.connect_timeout, "connect_timeout", nil),
    most_calls = positive(opts.max_calls, "max_calls", CALLS),
    logger = opts.log, calls = 0, turns = {}, first_turn = 1, last_turn = 0, spent_until = -math.huge,
  }, api_meta)
  self.client = core.http {
    user_agent = user_agent(opts.user_agent), ca_file = opts.ca_file, verify = opts.verify, proxy = opts.proxy,
  }
  return self
end

-- Logs ---------------------------------------------------------------------------------------------

-- The token may come back in what the service says.
local function hide(self, text)
  local token = self.token
  if #token < 8 then return text end
  local at = 1
  local parts
  while true do
    local first, last = text:find(token, at, true)
    if not first then break end
    parts = parts or {}
    parts[#parts + 1] = text:sub(at, first - 1)
    at = last + 1
  end
  if not parts then return text end
  parts[#parts + 1] = text:sub(at)
  return table.concat(parts, wire.REDACTED)
end

--- Tells whoever wants to know; secrets are taken out first.
---@param level "debug"|"info"|"warning"
---@param message string
---@param fields table?
function api:log(level, message, fields)
  if self.logger then pcall(self.logger, level, hide(self, message), wire.redact(fields or {})) end
end

-- Errors -------------------------------------------------------------------------------------------

local kinds_by_status = { [400] = "invalid", [401] = "auth", [403] = "denied", [404] = "not_found", [409] = "state",
  [410] = "not_found", [422] = "invalid", [425] = "busy", [429] = "resource" }

-- These say what happened to the caller here, so nobody else may.
local own_kinds = { cancelled = true, timeout = true, closed = true, exit = true }
local foreign_kinds = {}
for _, kind in ipairs(core.kinds) do foreign_kinds[kind] = not own_kinds[kind] end

--- The kind of error for a status, or the one that the service itself names.
---@param status integer?
---@param error_kind any `error_kind` of the answer
---@return bough.error_kind
function M.kind(status, error_kind)
  if foreign_kinds[error_kind] then return error_kind end
  return kinds_by_status[status] or "api"
end

local meanings = { [400] = "bad request", [401] = "the token is missing, unknown or expired", [403] = "not permitted",
  [404] = "not found", [405] = "no such method there", [406] = "not acceptable", [409] = "not possible in this state",
  [410] = "gone", [413] = "too large", [422] = "cannot be used that way", [425] = "not ready yet",
  [429] = "too many requests", [500] = "internal error", [502] = "bad gateway", [503] = "unavailable",
  [504] = "the gateway got no answer" }

-- Text of a stranger as one line of valid UTF-8.
local function one_line(text)
  text = text:sub(1, MESSAGE_BYTES * 8):gsub("[%c%s]+", " "):match "^ ?(.-) ?$"
  if #text > MESSAGE_BYTES then
    local stop = MESSAGE_BYTES
    while stop > MESSAGE_BYTES - 4 and (text:byte(stop + 1) & 0xC0) == 0x80 do stop = stop - 1 end
    text = text:sub(1, stop) .. "..."
  end
  while true do
    local _, bad = utf8.len(text)
    if not bad then return text end
    text = text:sub(1, bad - 1) .. "?" .. text:sub(bad + 1)
  end
end

-- A page that some machine in between has made.
local function page_text(text)
  local title = text:match "<[Tt][Ii][Tt][Ll][Ee][^>]*>%s*(.-)%s*</"
  if title and title ~= "" then return title end
  if text:find "^%s*<" then
    text = text:sub(1, 65536):gsub("<[Ss][Tt][Yy][Ll][Ee].-</[^>]*>", " ")
      :gsub("<[Ss][Cc][Rr][Ii][Pp][Tt].-</[^>]*>", " "):gsub("<[^>]*>", "\n")
  end
  return text:match "[^\r\n]*%S[^\r\n]*" or ""
end

local function trace_of(value)
  if type(value) == "string" then return value end
  if type(value) ~= "table" then return nil end
  local lines = {}
  for _, line in ipairs(value) do
    if type(line) ~= "string" then return nil end
    lines[#lines + 1] = line
  end
  return lines[1] and table.concat(lines, "\n") or nil
end

-- What the body of a refusal says: message, traceback, error_kind.
local function body_says(text)
  local value = text:find "^%s*{" and wire.decode(text) or nil
  if not value then return page_text(text) end
  local message = value.error
  if message == nil then message = value.message or value.detail end
  if type(message) == "table" then
    local good, shown = pcall(wire.encode, message)
    message = good and shown or "?"
  elseif message ~= nil then
    message = tostring(message)
  end
  return message or page_text(text), trace_of(value.traceback), value.error_kind
end

--- The error value for an answer that is none of success.
---@param op string
---@param answer { status: integer, headers: table<string, string>, body: string? }
---@return bough.error with `status`, `retry_after` in seconds, `traceback` and `request_id` where they are known
function api:problem(op, answer)
  local status, headers = answer.status, answer.headers
  local message, trace, kind = body_says((answer.body or ""):sub(1, ERROR_BYTES))
  message = one_line(hide(self, message))
  if message == "" then message = meanings[status] or "no reason given" end
  if status >= 300 and status < 400 and headers.location then
    message = "it redirects elsewhere, which is not followed: is the url right?"
  end
  local problem = errors.new(M.kind(status, kind), op, {
    status = status, retry_after = wire.retry_after(headers["retry-after"]),
    request_id = headers["x-request-id"] or headers["request-id"] or headers.traceparent,
  }, "%s answers %d: %s", self.host, status, message)
  if trace then problem.traceback = hide(self, trace) end
  return problem
end

-- Taking turns -------------------------------------------------------------------------------------

local function leave(self)
  while self.first_turn <= self.last_turn do
    local turn = self.turns[self.first_turn]
    self.turns[self.first_turn] = nil
    self.first_turn = self.first_turn + 1
    if turn.waits then
      turn.granted = true
      turn.condition:fire()
      return
    end
  end
  self.calls = self.calls - 1
end

local slot_meta = { __close = function(slot) leave(slot.api) end }

-- At most so many calls are under way, in the order of their coming. A call that waits where no task can run might
-- wait for one that stands still, so nobody waits for ever.
local function enter(self)
  if self.calls >= self.most_calls then
    local turn = { condition = core.condition(), waits = true }
    self.last_turn = self.last_turn + 1
    self.turns[self.last_turn] = turn
    local until_ = core.now() + LONGEST_TURN
    local good, why = true, nil
    while good and not turn.granted and core.now() < until_ do
      good, why = pcall(turn.condition.wait, turn.condition, until_ - core.now())
    end
    turn.waits = false
    if not good then
      if turn.granted then leave(self) end
      error(why, 0)
    end
    if not turn.granted then self.calls = self.calls + 1 end
  else
    self.calls = self.calls + 1
  end
  return setmetatable({ api = self }, slot_meta)
end

-- Trying again -------------------------------------------------------------------------------------

local safe_methods = { GET = true, HEAD = true, DELETE = true, PUT = true }

-- Whether the same call may succeed if it is sent again, and may be.
local function may_repeat(self, call, problem, count)
  local policy = self.policy
  if call.retry == false or policy.off or count >= policy.attempts then return false end
  local status = problem.status
  if status == 425 or status == 429 then return true end
  if problem.kind == "transport" and problem.sent == false then return self.answered or count < FIRST_ATTEMPTS end
  local safe = call.retry or policy.unsafe or safe_methods[call.method or "GET"]
  if not safe then return false end
  if status then return status == 410 or status >= 500 end
  -- a timeout is a silence; the deadline of a caller has another name
  return (problem.kind == "transport" or problem.kind == "timeout") and (self.answered or count < FIRST_ATTEMPTS)
end

-- All calls together try again only so often: when the service is down, it must not be many times as busy.
local function budget(self)
  local policy, now = self.policy, core.now()
  local due = math.max(self.spent_until - policy.burst * policy.interval, now)
  self.spent_until = math.max(self.spent_until, now) + policy.interval
  return due - now
end

-- Sleeps before the next attempt, or raises the last error at once when there is no time for it.
local function pause(self, call, problem, count, due)
  local pauses = self.policy.pauses
  local told = problem.retry_after
  -- with jitter, but never earlier than told
  local seconds = told and told + math.random() * math.min(told / 10, 1)
    or pauses[math.min(count, #pauses)] * (0.75 + 0.5 * math.random())
  -- those who have all the time in the world do not sleep for hours
  if core.now() + seconds >= due or seconds > self.timeout then error(problem, 0) end
  self:log("info", ("%s: trying again in %.2f s: %s"):format(call.op, seconds, problem.message),
    { op = call.op, status = problem.status, attempt = count })
  local good, why = pcall(function()
    core.sleep(seconds)
    local more = budget(self)
    if more > 0 then
      if core.now() + more >= due then error(problem, 0) end
      core.sleep(more)
    end
  end)
  if good then return end
  -- whose deadline passed wants to know what it was waiting for
  if errors.is(why, "timeout") and why ~= problem and why.cause == nil then why.cause = problem end
  error(why, 0)
end

-- Which of our errors an error of the transfer is.
local function rename(self, call, problem)
  if not errors.is(problem) or problem.op ~= "http" then return problem end
  local fields = { cause = problem, errno = problem.errno, sent = problem.sent }
  return errors.new(problem.kind, call.op, fields, "%s", hide(self, problem.message))
end

-- Calls `attempt(left)` until it succeeds: it returns an answer whose status counts as success, or raises.
local function persist(self, call, due, attempt)
  local count = 0
  while true do
    count = count + 1
    local left = due - core.now()
    if left <= 0 then raise("timeout", call.op, "%s gave no answer in time", self.host) end
    local began = core.now()
    local good, answer = pcall(attempt, left)
    if good then
      self.answered = true
      if self.logger then
        self:log("debug", ("%s %s: %d"):format(call.method or "GET", call.path, answer.status),
          { op = call.op, status = answer.status, attempt = count, seconds = core.now() - began })
      end
      return answer
    end
    local problem = answer
    if not errors.is(problem) or (problem.op == "deadline" or problem.kind == "cancelled") then error(problem, 0) end
    if problem.status then self.answered = true end
    local transfer = problem.op == "http"
    problem = rename(self, call, problem)
    self:log("debug", ("%s %s: %s"):format(call.method or "GET", call.path, problem.message),
      { op = call.op, status = problem.status, attempt = count, seconds = core.now() - began })
    if not (problem.status or transfer) or not may_repeat(self, call, problem, count) then error(problem, 0) end
    pause(self, call, problem, count, due)
  end
end

-- Calls --------------------------------------------------------------------------------------------

local known_fields = {}
for name in ("op method path query json body headers accept retry once timeout deadline stall_timeout raw expect sink "
  .. "max_bytes statuses on_transfer"):gmatch "%S+" do known_fields[name] = true end

local function check_call(call)
  for name in pairs(call) do
    if not known_fields[name] then error(("a call has no field %q"):format(tostring(name)), 3) end
  end
end

-- The request of core.http for a call; how long it may take is not in it.
local function request_of(self, call)
  if not self.client then raise("closed", call.op, "the engine is closed") end
  local method = call.method or "GET"
  local headers = { Project = self.project, Accept = call.accept }
  local body = call.body
  if call.json then
    body = wire.encode(call.json, call.op)
    headers["Content-Type"] = "application/json"
  elseif body then
    headers["Content-Type"] = "application/octet-stream"
  end
  for name, value in pairs(call.headers or {}) do headers[name] = value end
  local once = call.once
  if once == nil then once = not (safe_methods[method] or call.retry or self.policy.unsafe) end
  return {
    method = method, url = self.url .. "/v1" .. call.path .. wire.query(call.query or {}), headers = headers,
    body = body, bearer = self.token, follow = 0, compressed = true, once = once or nil, sink = call.sink,
    connect_timeout = self.connect_timeout,
  }
end

local function is_success(call, status)
  return (status >= 200 and status < 300) or (call.statuses and call.statuses[status]) or false
end

-- How long a call may take at most: an instant of core.now.
local function due_of(self, call)
  local seconds = call.timeout
  if seconds == nil then
    local long = call.sink ~= nil or type(call.body) == "table"
    seconds = long and math.huge or self.timeout
  end
  return math.min(core.now() + seconds, call.deadline or math.huge)
end

local function read_json(self, call, answer)
  local method = call.method or "GET"
  local wanted = call.expect or ((method == "GET" or method == "PATCH") and "object" or "any")
  local text = answer.body
  if not text:find "%S" then
    if wanted == "any" then return nil end
    raise("protocol", call.op, "%s answers without a body", self.host)
  end
  local value, why = wire.decode(text)
  -- those who want nothing do not care what it is
  local is_said = (answer.headers["content-type"] or ""):find("json", 1, true)
  if not value and wanted == "any" and not is_said then return nil end
  if not value then raise("protocol", call.op, "the answer of %s %s", self.host, why) end
  local kind = text:match "^[%s\u{FEFF}]*(.)" == "[" and "array" or "object"
  if wanted ~= "any" and kind ~= wanted then
    raise("protocol", call.op, "the answer of %s is not an %s but an %s", self.host, wanted, kind)
  end
  return value
end

local TELLING = 0.1 -- seconds between words of how far a body is

local function exchange(self, call, request)
  if call.sink then call.sink:reset() end -- an attempt before may have left a piece
  if not call.on_transfer then return self.client:request(request) end
  local transfer <close> = self.client:start(request)
  while true do
    local answer = transfer:wait(TELLING)
    call.on_transfer((transfer:progress()))
    if answer then return answer end
  end
end

--- Sends a call, again where that is due, and returns the answer. Waits.
---
--- Raises an error of the kind that the service or its status says, with `status`, `retry_after` and `traceback`;
--- `transport` when the connection fails, with `sent` false when the service cannot have noticed; `protocol` for an
--- answer that cannot be understood, `timeout` when the time of the call has passed, `resource` for an answer that is
--- too large. After a lost answer to POST or PATCH, nobody knows whether it was done.
---@param call bough.contree.call
---@return bough.contree.answer
function api:call(call)
  check_call(call)
  local due = due_of(self, call)
  local request = request_of(self, call)
  request.stall_timeout = call.stall_timeout or SILENCE
  request.max_bytes = call.max_bytes or JSON_BYTES
  local answer = persist(self, call, due, function(left)
    request.timeout = left < math.huge and left or nil
    local slot <close> = enter(self) -- luacheck: ignore 211
    if not self.client then raise("closed", call.op, "the engine is closed") end
    local answer = exchange(self, call, request)
    if not is_success(call, answer.status) then error(self:problem(call.op, answer), 0) end
    return answer
  end)
  local is_body = not call.raw and not call.sink and request.method ~= "HEAD" and answer.status < 300
  if is_body then answer.json = read_json(self, call, answer) end
  return answer
end

--- Whether something exists: asks by HEAD. Waits.
---@param call bough.contree.call
---@return boolean
function api:exists(call)
  local asked = { method = "HEAD", statuses = { [404] = true } }
  for name, value in pairs(call) do asked[name] = value end
  return self:call(asked).status ~= 404
end

-- The rest of a body that says why there is no stream.
local function drain(stream)
  local parts, size = {}, 0
  while size < ERROR_BYTES do
    local good, piece = pcall(stream.read, stream, ERROR_BYTES - size)
    if not good and errors.is(piece) and piece.op ~= "http" then error(piece, 0) end
    if not good or not piece then break end
    parts[#parts + 1] = piece
    size = size + #piece
  end
  return table.concat(parts)
end

--- Opens the body of an answer as a stream, once its headers say 2xx; tries again before that as `call` does. Has no
--- time limit of its own besides `timeout` and `deadline`, which end with the headers. Waits.
---@param call bough.contree.call
---@return userdata stream of core.http, with `status` and `headers`
function api:open(call)
  check_call(call)
  local due = math.min(core.now() + (call.timeout or self.timeout), call.deadline or math.huge)
  local request = request_of(self, call)
  request.stall_timeout = call.stall_timeout or SILENCE
  request.http2 = call.accept == EVENTS or nil -- what is slowly read has a connection of its own
  local function opened()
    local stream = self.client:open(request)
    if is_success(call, stream.status) then return stream end
    local closing <close> = stream
    error(self:problem(call.op, { status = stream.status, headers = stream.headers, body = drain(closing) }), 0)
  end
  return persist(self, call, due, function(left)
    if not self.client then raise("closed", call.op, "the engine is closed") end
    if left == math.huge then return opened() end
    local good, result = pcall(core.deadline, left, opened)
    if good then return result end
    -- ours, unless one of the caller's was nearer, which raises again at its next wait
    if errors.is(result, "timeout") and result.op == "deadline" and core.now() >= due then
      raise("timeout", call.op, "%s gave no answer in time", self.host)
    end
    error(result, 0)
  end)
end

-- Listings -----------------------------------------------------------------------------------------

local PAGE = 1000

--- Iterates over a listing, page by page as it is walked. Each step may wait.
---@param call { op: string, path: string, query: any[][]?, key: string?, number: number?, page: integer? }
--- `key`: the field that holds the array, nil where the answer is one; `number`: at most so many; `page`: 1 to 1000
---@return fun(): table? the next item
function api:pages(call)
  local page, left = call.page or PAGE, call.number or math.huge
  if math.type(page) ~= "integer" or page < 1 or page > PAGE then
    raise("invalid", call.op, "page must be a whole number from 1 to %d, not %s", PAGE, errors.quote(page))
  end
  if type(left) ~= "number" or left ~= left or left < 0 then
    raise("invalid", call.op, "number must be a number of items, not %s", errors.quote(left))
  end
  local items, at, offset, done, fresh = {}, 0, 0, false, true
  local seen, before = {}, {} -- uuids of this page and the one before: a listing that grows meanwhile shifts
  local function fetch()
    local limit = math.tointeger(math.min(page, math.ceil(left)))
    local query = {}
    for _, pair in ipairs(call.query or {}) do query[#query + 1] = pair end
    query[#query + 1] = { "limit", limit }
    if offset > 0 then query[#query + 1] = { "offset", offset } end
    local answer = self:call { op = call.op, path = call.path, query = query, expect = "any" }
    local list = answer.json
    if list and list[1] == nil and next(list) ~= nil then list = call.key and list[call.key] end
    if type(list) ~= "table" then raise("protocol", call.op, "the answer of %s is no listing", self.host) end
    items, at = list, 0
    offset = offset + #list
    done = #list < limit
    before, seen = seen, {}
  end
  return function()
    while left > 0 do
      while at >= #items do
        -- a page of which all was in the one before is from a service that cannot page
        if done or not fresh then return nil end
        fetch()
        fresh = false
      end
      at = at + 1
      local item = items[at]
      local uuid = type(item) == "table" and item.uuid
      if type(item) ~= "table" then
        raise("protocol", call.op, "the listing of %s holds what is no object", self.host)
      end
      if uuid then seen[uuid] = true end
      if not (uuid and before[uuid]) then
        left, fresh = left - 1, true
        return item
      end
    end
  end
end

-- Who we are ---------------------------------------------------------------------------------------

---@class bough.contree.whoami
---@field token_uuid string
---@field token_expiration number? seconds since the epoch
---@field permissions table<string, boolean>
---@field limits table<string, number>?
---@field operations_stat table<string, number>

--- What the service knows of the token: asked once, then remembered. Waits.
---@param refresh boolean? asks again
---@return bough.contree.whoami
function api:whoami(refresh)
  if self.identity and not refresh then return self.identity end
  local identity = self:call({ op = "whoami", path = "/whoami" }).json
  if type(identity.permissions) ~= "table" then identity.permissions = {} end
  if type(identity.limits) ~= "table" then identity.limits = {} end
  self.identity = identity
  local expires = tonumber(identity.token_expiration)
  local left = expires and expires - core.time()
  if left and left < EXPIRES_SOON then
    self:log("warning", left > 0 and ("the token expires in %d s"):format(left // 1) or "the token has expired",
      { token_uuid = identity.token_uuid, expires_in = left })
  end
  return identity
end

--- Ends what is under way and lets go of all connections. Twice does nothing.
function api:close()
  local client = self.client
  self.client = nil
  if client then client:close() end
end

api_meta.__close = api.close

return M
