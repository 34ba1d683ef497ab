--- HTTP for the server: a listener, requests, answers. Over bough.httpd, on the loop of the core.
--
-- One service (the pump) does what the network wants; each request has a task of its own, which waits for its
-- body and for room in its answer, and for nobody else's.

local core = require "bough.core"
local errors = require "bough.error"
local json = require "bough.json"

local M = {}

local GZIP_LEAST = 256 -- bytes of a body that is worth it
local GZIP_WHOLE = 256 << 10 -- above, it is compressed and sent piece by piece
local BODY_MOST = 16 << 20
local TURN_EVERY = 256 << 10 -- bytes of a large answer, so that others get their turn
local CANCEL_SECONDS = 5 -- for requests that are cancelled when the server ends ...
local SEND_SECONDS = 1 -- ... and to tell their clients

-- Problems --------------------------------------------------------------------------------------------

---@class bough.serve.problem
---@field status integer
---@field message string
---@field kind bough.error_kind?
---@field retry_after number? seconds
---@field headers table<string, string>?
local problem_meta = { __name = "bough.serve.problem" }
function problem_meta:__tostring() return ("%d: %s"):format(self.status, self.message) end

--- An answer that is an error, for a handler to raise: `error(http.problem(404, "no such image"), 0)`.
---@param status integer
---@param message string one line, for the client to read
---@param more { kind: bough.error_kind?, retry_after: number?, headers: table<string, string>? }?
---@return bough.serve.problem
function M.problem(status, message, more)
  more = more or {}
  return setmetatable({
    status = status, message = message, kind = more.kind, retry_after = more.retry_after, headers = more.headers,
  }, problem_meta)
end

local problem = M.problem

--- Raises one.
---@param status integer
---@param message string
---@param more table? as for `problem`
function M.fail(status, message, more) error(problem(status, message, more), 0) end

--- Whether a value is a problem.
---@param value any
---@return boolean
function M.is_problem(value) return getmetatable(value) == problem_meta end

-- What went wrong in the world is the server's own fault, and its text stays here: only what the caller can
-- do something about is told.
local statuses = {
  invalid = 400, auth = 401, denied = 403, not_found = 404, exists = 409, state = 409, busy = 409, disposed = 409,
  closed = 409, exit = 409, timeout = 504, cancelled = 503, unsupported = 422, resource = 507,
}

-- The problem that an error amounts to; nil for one that is nobody's business.
local function to_problem(raised)
  if M.is_problem(raised) then return raised end
  local status = errors.is(raised) and statuses[raised.kind]
  return status and problem(status, raised.message, { kind = raised.kind }) or nil
end

-- Requests --------------------------------------------------------------------------------------------

---@class bough.serve.request
---@field method string "GET", or whatever the client says
---@field path string as sent: still escaped, without the query
---@field segments string[] of the path, decoded; the last one is "" after a trailing slash
---@field query string as sent, "" for none
---@field params table<string, string[]> of the query, decoded; "+" is a blank
---@field headers table<string, string> lower-case names; several of one name are joined by ", "
---@field peer string the client's address
---@field version string "HTTP/1.1"
---@field length integer? of the body; nil when it is not told beforehand
---@field id string what `X-Request-ID` says in the answer
---@field gone boolean the client has gone
---@field status integer? of the answer
---@field started number seconds since the epoch
---@field task bough.task that serves it
---@field private exchange any
---@field private server bough.serve.server
local request = {}

local lazy = {}

local function httpd() return require "bough.httpd" end

-- "http://host/path" is another way to write "/path".
local function split(self)
  local target = self.target
  local rest = target:match "^%a[%w+.-]*://[^/?]*(.*)$"
  if rest then target = rest:find "^/" and rest or "/" .. rest end
  local path, query = target:match "^([^?]*)%??(.*)$"
  self.path, self.query = path, query
end

function lazy.path(self)
  split(self)
  return self.path
end

function lazy.query(self)
  split(self)
  return self.query
end

local function broken(what) error(problem(400, "broken percent-encoding in " .. what, { kind = "invalid" }), 0) end

function lazy.segments(self)
  local unescape = self.server.httpd.unescape
  local segments = {}
  for part in self.path:gmatch "/([^/]*)" do
    local segment = unescape(part, false)
    if not segment then broken "the path" end
    if segment:find("\0", 1, true) then
      error(problem(400, "the path holds a zero byte", { kind = "invalid" }), 0)
    end
    segments[#segments + 1] = segment
  end
  return segments
end

function lazy.params(self)
  local unescape = self.server.httpd.unescape
  local params = {}
  for part in self.query:gmatch "[^&]+" do
    local name, value = part:match "^([^=]*)=?(.*)$"
    name, value = unescape(name, true), unescape(value, true)
    if not name or not value then broken "the query" end
    local values = params[name]
    if values then values[#values + 1] = value else params[name] = { value } end
  end
  return params
end

function lazy.headers(self) return self.exchange:headers() end

local function about(self) self.peer, self.version, self.length = self.exchange:about() end

function lazy.peer(self)
  about(self)
  return self.peer
end

function lazy.version(self)
  about(self)
  return self.version
end

function lazy.length(self)
  about(self)
  return rawget(self, "length")
end

function lazy.id(self) return self.server.prefix .. ("%x"):format(self.number) end

local request_meta = { __name = "bough.serve.request" }

function request_meta.__index(self, name)
  local value = request[name]
  if value ~= nil then return value end
  local make = lazy[name]
  if not make then return nil end
  value = make(self)
  rawset(self, name, value)
  return value
end

function request_meta:__tostring() return ("request %s %s"):format(self.method, self.path) end

local function changed(self)
  local cond = rawget(self, "cond")
  if not cond then
    cond = core.condition()
    self.cond = cond
  end
  return cond
end

--- A condition that fires when the client has gone; look at `gone` first.
---@return bough.condition
function request:on_gone()
  local cond = rawget(self, "gone_cond")
  if not cond then
    cond = core.condition()
    self.gone_cond = cond
  end
  return cond
end

--- From now on the task of this request is cancelled when its client goes; for work that nobody else wants.
---@param on boolean? default true
function request:cancel_when_gone(on)
  self.cancels = on ~= false
  if self.cancels and self.gone then self.task:cancel() end
end

local function gone() return problem(499, "the client has gone") end

-- What stands still in the network goes on when the pump has run: soon, and once for all who ask.
local function kick(self)
  if not self.kicked and not self.turning then
    self.kicked = true
    self.kick:fire()
  end
end

-- The next piece of the body, nil at its end. Waits.
local function piece(self)
  while true do
    local data, why = self.exchange:read()
    kick(self.server)
    if data then return data end
    if why == "end" then return nil end
    if why == "gone" then error(gone(), 0) end
    if why == "slow" then error(problem(408, "the body comes too slowly", { kind = "timeout" }), 0) end
    changed(self):wait()
  end
end

--- Iterates over the pieces of the body, as they come: at most 256 KiB are read ahead of need. Waits.
---@return fun(): string?
function request:chunks()
  return piece, self
end

local function too_large(max)
  return problem(413, ("the body is larger than %d bytes"):format(max), { kind = "resource" })
end

--- The whole body. Waits. Raises problem 413 for one that is larger than `max`, before it is read where it says
--- its length.
---@param max integer? bytes, default 16 MiB
---@return string
function request:body(max)
  max = max or BODY_MOST
  if (self.length or 0) > max then error(too_large(max), 0) end
  local first = piece(self)
  if not first then return "" end
  local parts, size = { first }, #first
  while size <= max do
    local data = piece(self)
    if not data then return #parts == 1 and first or table.concat(parts) end
    size = size + #data
    parts[#parts + 1] = data
  end
  error(too_large(max), 0)
end

-- Null fields are absent ones, and whole numbers integers.
local function plain(value)
  for name, field in pairs(value) do
    local kind = type(field)
    if kind == "table" then
      plain(field)
    elseif kind == "number" then
      value[name] = math.tointeger(field) or field
    elseif field == json.null and type(name) == "string" then
      value[name] = nil
    end
  end
  return value
end

--- The body, read as a JSON object. Waits. Raises problem 400 for anything else.
---@param max integer? bytes, default 1 MiB
---@return table fields that are `null` are absent; in arrays `null` is `json.null`
function request:json(max)
  local text = self:body(max or 1 << 20)
  local value, why = json.read(text)
  if not value then error(problem(400, "the body " .. why, { kind = "invalid" }), 0) end
  if not text:find "^%s*{" then error(problem(400, "the body is not a JSON object", { kind = "invalid" }), 0) end
  return plain(value)
end

-- Answers ---------------------------------------------------------------------------------------------

local function add(list, headers)
  for name, value in pairs(headers or {}) do
    if type(value) == "table" then
      for _, one in ipairs(value) do
        list[#list + 1] = name
        list[#list + 1] = tostring(one)
      end
    else
      list[#list + 1] = name
      list[#list + 1] = tostring(value)
    end
  end
  return list
end

local function check_open(self)
  if rawget(self, "status") then errors.raise("state", "request", "%s has an answer already", tostring(self)) end
end

---@class bough.serve.stream
---@field private request bough.serve.request
local stream = {}
local stream_meta = { __index = stream, __name = "bough.serve.stream" }

function stream_meta:__tostring() return self.open and "stream (open)" or "stream (closed)" end

--- Sends bytes, all of them. Waits while 256 KiB are on their way to the client.
---@param bytes string
---@return boolean # false when nobody reads them: the client has gone, or asked with HEAD
function stream:write(bytes)
  if not self.open then return false end
  local exchange = self.exchange
  local from, size, since = 1, #bytes, 0
  while from <= size do
    local taken = exchange:put(bytes, from)
    kick(self.request.server)
    if not taken then
      self.open = false
      return false
    end
    from, since = from + taken, since + taken
    if taken == 0 then
      changed(self.request):wait()
    elseif since >= TURN_EVERY then
      since = 0
      core.sleep(0)
    end
  end
  return true
end

--- What was written can be read by the client at once: matters only where it is compressed, and not for events,
--- which are never held back.
---@return boolean # as of `write`
function stream:flush()
  if self.open and not self.exchange:flush() then self.open = false end
  kick(self.request.server)
  return self.open
end

--- Ends the answer. `<close>` does it too; when an error ends the block, the connection is broken instead, so that
--- the client can tell.
function stream:close()
  if self.finished then return end
  self.finished, self.open = true, false
  self.exchange:finish()
  kick(self.request.server)
end

--- Ends the connection in the middle of the answer.
function stream:abort()
  if self.finished then return end
  self.finished, self.open = true, false
  self.exchange:abort()
  kick(self.request.server)
end

function stream_meta:__close(err)
  if err ~= nil then self:abort() else self:close() end
end

--- Begins an answer that is written piece by piece, in chunks, compressed when the client likes.
---@param status integer
---@param content_type string of "text/event-stream", each write reaches the client at once
---@param headers table<string, string|string[]>?
---@param size integer? of the whole, where it is known: told to clients that do not want it compressed
---@return bough.serve.stream
function request:stream(status, content_type, headers, size)
  check_open(self)
  local exchange = self.exchange
  local gzip = exchange:accepts_gzip()
  local list = add({
    "X-Request-ID", self.id, "Content-Type", content_type, "Cache-Control", "no-cache", "Vary", "Accept-Encoding",
  }, headers)
  local events = content_type:find "^text/event%-stream"
  local good = exchange:open(status, list, gzip and (events and "events" or "bulk") or "none", size)
  self.status = status
  kick(self.server)
  local out = setmetatable({ request = self, exchange = exchange, open = good }, stream_meta)
  self.out = out
  return out
end

local function whole(self, status, content_type, bytes, headers)
  check_open(self)
  local list = { "X-Request-ID", self.id }
  local gzip = false
  if content_type then list[3], list[4] = "Content-Type", content_type end
  if bytes and #bytes > GZIP_LEAST then
    list[#list + 1], list[#list + 2] = "Vary", "Accept-Encoding"
    gzip = self.exchange:accepts_gzip()
  end
  if headers then add(list, headers) end
  self.exchange:reply(status, list, bytes, gzip)
  self.status = status
  kick(self.server)
end

--- Answers with bytes. Waits only where they are many.
---@param status integer
---@param content_type string
---@param bytes string
---@param headers table<string, string|string[]>?
function request:send(status, content_type, bytes, headers)
  if #bytes > GZIP_WHOLE and self.exchange:accepts_gzip() then
    local out <close> = self:stream(status, content_type, headers)
    out:write(bytes)
    return
  end
  whole(self, status, content_type, bytes, headers)
end

--- Answers with JSON, or with nothing.
---@param status integer
---@param value any nil for no body; a table with `[1]`, or of `json.array`, is an array
---@param headers table<string, string|string[]>?
function request:reply(status, value, headers)
  if value ~= nil then
    return self:send(status, "application/json", self.server.httpd.json(value), headers)
  end
  whole(self, status, nil, nil, headers)
end

local function reply_problem(self, why)
  local headers
  if why.headers or why.retry_after then
    headers = {}
    for name, value in pairs(why.headers or {}) do headers[name] = value end
    if why.retry_after then headers["Retry-After"] = ("%.14g"):format(why.retry_after) end
  end
  self:reply(why.status, { error = why.message, status = why.status, error_kind = why.kind }, headers)
end

-- The server ------------------------------------------------------------------------------------------

---@class bough.serve.server
---@field port integer the actual one
---@field address string
---@field url string "http://127.0.0.1:8080"
---@field private daemon any
local server = {}
local server_meta = { __index = server, __name = "bough.serve.server" }

function server_meta:__tostring() return ("server %s (%s)"):format(self.url, self.state) end

local function report(self, level, message, fields)
  if self.report then self.report(level, message, fields) end
end

-- What a handler raised, with where it came from: for the log, never for the client.
local function trace(raised)
  if M.is_problem(raised) or errors.is(raised) then return raised end
  return { unknown = raised, traceback = debug.traceback(tostring(raised), 2) }
end

local function failed(self, raised)
  local why = to_problem(raised)
  local answered = rawget(self, "status")
  if not why or (answered and not self.gone and why.status ~= 499) then
    local unknown = type(raised) == "table" and raised.unknown or raised
    report(self.server, "error", ("%s %s: %s"):format(self.method, self.path, tostring(unknown)),
      { request = self.id, traceback = type(raised) == "table" and raised.traceback or nil })
    why = problem(500, "internal error")
  end
  if answered then -- too late to say so
    if self.out then self.out:abort() end
    return
  end
  if self.gone or why.status == 499 then
    self.status = 499
    self.exchange:abort()
    kick(self.server)
    return
  end
  reply_problem(self, why)
end

-- What is left to do when the handler has returned, or raised.
local function conclude(self, good, raised)
  if not good then return failed(self, raised) end
  if not rawget(self, "status") then
    report(self.server, "error", ("%s %s: no answer"):format(self.method, self.path), { request = self.id })
    return reply_problem(self, problem(500, "internal error"))
  end
  if self.out then self.out:close() end
end

-- The task of a request.
local function serve(self, handler)
  local good, raised = pcall(conclude, self, xpcall(handler, trace, self))
  if not good then
    report(self.server, "error", tostring(raised), { request = self.id })
    self.exchange:abort()
    kick(self.server)
  end
  self.done = true
  if self.over then self.server:forget(self) end
end

local function refused(self)
  error(problem(self.refusal, self.why, { kind = self.refusal == 501 and "unsupported" or "invalid" }), 0)
end

-- Both the task and the client are through with it.
function server:forget(which)
  self.live[which.number] = nil
  if self.log then
    local bytes_in, bytes_out = which.exchange:counts()
    local now = core.time()
    local good, raised = pcall(self.log, {
      time = which.started, seconds = now - which.started, peer = which.peer, method = which.method,
      path = which.path, status = which.status, bytes_in = bytes_in, bytes_out = bytes_out, id = which.id,
      gone = which.gone or nil, token = which.token,
    })
    if not good then report(self, "error", "the access log: " .. tostring(raised)) end
  end
  which.exchange:close()
  if self.emptied and not next(self.live) then self.emptied:fire() end
end

local function accept(self, exchange, number, method, target, refusal, why)
  local one = setmetatable({
    exchange = exchange, number = number, method = method, target = target, server = self, gone = false,
    started = core.time(), refusal = refusal, why = why,
  }, request_meta)
  self.live[number] = one
  one.task = core.spawn(serve, one, refusal and refused or self.handler)
end

local function notice(self, number, body, room, is_gone, over)
  local one = self.live[number]
  if not one then return end
  if is_gone and not one.gone then
    one.gone = true
    local cond = rawget(one, "gone_cond")
    if cond then cond:fire() end
    if one.cancels and not one.done then one.task:cancel() end
  end
  if body or room or is_gone or over then
    local cond = rawget(one, "cond")
    if cond then cond:fire() end
  end
  if over then
    one.over = true
    if one.done then self:forget(one) end
  end
end

local function events(self)
  local daemon = self.daemon
  local number, body, room, is_gone, over = daemon:news()
  while number do
    notice(self, number, body, room, is_gone, over)
    number, body, room, is_gone, over = daemon:news()
  end
  local exchange, id, method, target, refusal, why = daemon:take()
  while exchange do
    accept(self, exchange, id, method, target, refusal, why)
    exchange, id, method, target, refusal, why = daemon:take()
  end
end

-- Does what is ready; returns after how many seconds there may be more to do.
local function turn(self)
  local pause = self.daemon:run()
  events(self)
  while pause == 0 do
    self.turning = true -- whoever gets something done now need not wake anybody
    core.sleep(0)
    self.turning = false
    if self.state == "closed" then return end
    pause = self.daemon:run()
    events(self)
  end
  return pause
end

-- What comes from the network.
local function pump(self)
  while self.state ~= "closed" do
    self.poll:wait(turn(self))
  end
end

-- What comes from the tasks.
local function push(self)
  while self.state ~= "closed" do
    if not self.kicked then self.kick:wait() end
    self.kicked = false
    if self.state ~= "closed" then turn(self) end
  end
end

local function shut(self)
  if self.state == "closed" then return end
  self.state = "closed"
  self.daemon:close()
  self.poll:close()
  for number in pairs(self.live) do notice(self, number, true, true, true, true) end
  self.kick:fire()
  self.ended:fire()
end

-- Cancels what is under way; returns the tasks.
local function give_up(self)
  local tasks = {}
  for _, one in pairs(self.live) do
    if not one.done then
      tasks[#tasks + 1] = one.task
      one.task:cancel()
    end
  end
  return tasks
end

local function service(self, fn)
  core.service(function()
    local good, raised = pcall(fn, self)
    if self.state ~= "closed" then
      report(self, "error", "the server ends: " .. tostring(good or raised))
      give_up(self)
      shut(self)
    end
  end)
end

--- Starts to serve: `handler(request)` runs in a task for each request. What it raises becomes the answer: a
--- problem as it is, an error of bough by its kind, anything else as 500, with what it was in the log only.
---@param handler fun(request: bough.serve.request)
function server:serve(handler)
  if self.handler then errors.raise("state", "serve", "the server has its handler already") end
  self.handler = handler
  self.state = "serving"
  service(self, pump)
  service(self, push)
end

--- How many connections are open, and how many requests are under way.
---@return integer connections
---@return integer requests
function server:counts()
  if self.state == "closed" then return 0, 0 end
  return self.daemon:counts()
end

--- Ends the server: no more connections; what is under way is answered for at most `grace` seconds, what is left
--- then is cancelled, and its clients are told so (503). Waits. May be called again.
---@param grace number? seconds, default 10
function server:stop(grace)
  if self.state == "closed" then return end
  self.emptied = self.emptied or core.condition()
  self.daemon:quiesce()
  self.state = "stopping"
  local function settle(seconds)
    local until_then = core.now() + seconds
    while next(self.live) and self.state ~= "closed" and core.now() < until_then do
      self.emptied:wait(math.max(0.001, until_then - core.now()))
    end
  end
  settle(grace or 10)
  local tasks = give_up(self)
  if tasks[1] then
    pcall(core.deadline, CANCEL_SECONDS, function()
      for _, task in ipairs(tasks) do pcall(task.wait, task) end
    end)
    settle(SEND_SECONDS)
  end
  shut(self)
end

--- The same at once.
function server:close() self:stop(0) end

server_meta.__close = server.close

--- Waits until the server has ended; false when `seconds` have passed first.
---@param seconds number? default: for ever
---@return boolean
function server:wait(seconds)
  local until_then = seconds and core.now() + seconds
  while self.state ~= "closed" do
    local left = until_then and until_then - core.now()
    if left and left <= 0 then return false end
    self.ended:wait(left)
  end
  return true
end

local known = {
  "address", "port", "cert", "key", "key_password", "connections", "per_ip", "headers", "header_bytes",
  "target_bytes", "header_seconds", "idle_seconds", "gone_seconds", "slow_seconds", "slow_bytes", "linger_seconds",
  "log", "report",
}

---@class bough.serve.listen
---@field address string? numeric IPv4 or IPv6, default "127.0.0.1"
---@field port integer? 0, the default: any free one
---@field cert string? certificates in PEM, the server's own first; with `key`: HTTPS
---@field key string? in PEM
---@field key_password string?
---@field connections integer? at a time, default 4096; more wait
---@field per_ip integer? of one address; default: no limit
---@field headers integer? header lines, default 100
---@field header_bytes integer? default 32 KiB
---@field target_bytes integer? default 8 KiB
---@field header_seconds number? for the whole header of a request, and TLS's handshake; default 10
---@field idle_seconds number? between requests, default 75
---@field gone_seconds number? after which a client that sends no more, but may still read, counts as gone; default 5
---@field slow_seconds number? default 20: in so many seconds, and in three times as many ...
---@field slow_bytes number? ... a body must grow by so many bytes, and so many of an answer be read; default 2560
---@field linger_seconds number? how long a client may go on sending a body that was turned down; default 5
---@field log (fun(entry: bough.serve.entry))? called once for each request, when it is over; must not wait
---@field report (fun(level: string, message: string, fields: table?))? what clients are not told; must not wait

---@class bough.serve.entry
---@field time number when it came, seconds since the epoch
---@field seconds number how long it took
---@field peer string
---@field method string
---@field path string without the query, which may hold secrets
---@field status integer 499 when the client had gone before there was an answer
---@field bytes_in integer of body
---@field bytes_out integer of body, as sent
---@field id string
---@field gone boolean? the client did not get all of it
---@field token any what the handler has set on the request

--- Opens a listener. It serves nobody before `server:serve`.
---@param options bough.serve.listen?
---@return bough.serve.server
function M.listen(options)
  options = errors.check_keys("serve", options, known)
  local good, module = pcall(httpd)
  if not good then
    errors.raise("unsupported", "serve",
      "bough was built without its HTTP server: it needs libmicrohttpd (Debian: libmicrohttpd-dev), then build again")
  end
  local daemon, kind, message = module.new(options)
  if not daemon then errors.raise(kind, "serve", "%s", message) end
  local address, port = daemon:where()
  local host = address:find(":", 1, true) and "[" .. address .. "]" or address
  return setmetatable({
    daemon = daemon, httpd = module, poll = core.poll(daemon:fd()), address = address, port = port,
    url = ("%s://%s:%d"):format(options.cert and "https" or "http", host, port),
    live = {}, kicked = false, kick = core.condition(),
    log = options.log, report = options.report, ended = core.condition(), state = "open",
    prefix = ("%08x-"):format(math.random(0, 0xffffffff)),
  }, server_meta)
end

return M
