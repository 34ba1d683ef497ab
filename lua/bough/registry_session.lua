--- Requests to one repository of a registry: where it is, who we are there, and trying again.

local core = require "bough.core"
local docker_config = require "bough.docker_config"
local errors = require "bough.error"
local json = require "bough.json"

local M = {}

local quote = errors.quote

local ATTEMPTS = 5
local FIRST_ATTEMPTS = 2 -- where nobody has ever answered
local LONGEST_DELAY = 30 -- seconds
local TOKEN_BYTES = 64 << 10

---@class bough.registry_session
---@field client bough.http
---@field base string "https://host"
---@field private bases string[] others to try while nobody has answered
local session = {}
local session_meta = { __index = session, __name = "bough.registry_session" }
function session_meta:__tostring() return "registry " .. self.ref.registry end

local function is_local(host)
  host = host:gsub(":%d+$", "")
  return host == "localhost" or host == "[::1]" or host:find("^127%.%d+%.%d+%.%d+$") ~= nil
end

--- Opens a session; asks nobody anything yet.
---@param ref bough.reference
---@param opts { op: string?, client: bough.http, username: string?, password: string?, anonymous: boolean?,
---  insecure: boolean?, retry_delay: number?, stall_timeout: number? }
---@return bough.registry_session
function M.open(ref, opts)
  local schemes, bases = { "https" }, {}
  if is_local(ref.registry) then
    schemes = { "http" }
  elseif opts.insecure then
    schemes = { "https", "http" }
  end
  for i, scheme in ipairs(schemes) do bases[i] = ("%s://%s"):format(scheme, ref.registry) end
  local given = opts.username and { username = opts.username, password = opts.password } or nil
  return setmetatable({
    ref = ref, op = opts.op, client = opts.client, given = given, anonymous = opts.anonymous,
    insecure = opts.insecure,
    delay = opts.retry_delay or 0.5, stall_timeout = opts.stall_timeout,
    base = table.remove(bases, 1), bases = bases,
  }, session_meta)
end

function session:fail(kind, status, fmt, ...)
  error(errors.new(kind, self.op, { status = status }, "%s: " .. fmt, self.ref.name, ...), 0)
end

-- Trying again -------------------------------------------------------------------------------------

local month = { Jan = 1, Feb = 2, Mar = 3, Apr = 4, May = 5, Jun = 6, Jul = 7, Aug = 8, Sep = 9, Oct = 10,
  Nov = 11, Dec = 12 }

-- Seconds from now, of "120" or "Wed, 21 Oct 2015 07:28:00 GMT".
local function retry_after(text)
  local seconds = tonumber(text and text:match "^%d+$")
  if seconds or not text then return seconds end
  local d, m, y, hour, min, sec = text:match "(%d+) (%a+) (%d+) (%d+):(%d+):(%d+) GMT"
  if not month[m] then return nil end
  local now = os.time()
  local zone = os.time(os.date("*t", now)) - os.time(os.date("!*t", now))
  local at = os.time {
    day = math.tointeger(d), month = month[m], year = math.tointeger(y), hour = math.tointeger(hour),
    min = math.tointeger(min), sec = math.tointeger(sec), isdst = false,
  }
  return at and math.max(at + zone - now, 0)
end

local passing = { [408] = true, [425] = true, [429] = true, [500] = true, [502] = true, [503] = true,
  [504] = true }

--- Whether this answer, or this error, may be another one next time.
function session.is_passing(answer)
  if not errors.is(answer) then return passing[answer.status] == true end
  -- a deadline of the caller's is a timeout too, and not ours to sit out
  return answer.op == "http" and (answer.kind == "transport" or answer.kind == "timeout")
end

--- Counts attempts: a function that waits and returns true, or false when there were enough.
---@return fun(answer: table): boolean
---@return fun() forget there was progress
function session:patience()
  local count = 0
  return function(answer)
    count = count + 1
    if count >= (self.answered and ATTEMPTS or FIRST_ATTEMPTS) then return false end
    local headers = rawget(answer, "headers")
    local seconds = headers and retry_after(headers["retry-after"]) or self.delay * 2 ^ (count - 1)
    core.sleep(math.min(seconds, LONGEST_DELAY))
    return true
  end, function() count = 0 end
end

-- Who we are ---------------------------------------------------------------------------------------

-- "Bearer realm="https://...",service="x", Basic realm="y"" as { bearer = { realm =, ... }, basic = {...} }.
local function challenges(text)
  local found, current = {}, nil
  local at = 1
  while at <= #text do
    local name, value, stop = text:match('^[%s,]*([%w_-]+)%s*=%s*"([^"]*)"()', at)
    if not name then name, value, stop = text:match("^[%s,]*([%w_-]+)%s*=%s*([^%s,\"]+)()", at) end
    if name and current then
      current[name:lower()] = value
    else
      name, stop = text:match("^[%s,]*([%w_-]+)()", at)
      if not name then break end
      current = {}
      found[name:lower()] = found[name:lower()] or current
    end
    at = stop
  end
  return found
end

local function encode(text)
  return (text:gsub("[^%w._~-]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function form(fields)
  local parts = {}
  for i = 1, #fields, 2 do
    if fields[i + 1] then parts[#parts + 1] = fields[i] .. "=" .. encode(fields[i + 1]) end
  end
  return table.concat(parts, "&")
end

function session:credentials()
  if not self.looked then
    self.looked = true
    self.known = self.given or not self.anonymous and docker_config.find(self.ref.domain, self.op) or nil
    if self.known and self.known.helper then
      self.helper, self.known = self.known.helper, nil
    end
  end
  return self.known
end

-- Why it is no use to ask further.
function session:refuse_login(status)
  if self:credentials() then
    self:fail("auth", status, "%s refuses the credentials, or there is no such image: check username, "
      .. "password and name", self.ref.registry)
  elseif self.helper then
    self:fail("auth", status, "%s wants credentials, and docker keeps them in a helper (%s), which is not "
      .. "asked: give username and password", self.ref.registry, quote(self.helper))
  end
  self:fail("auth", status, "%s shows it to nobody without credentials, or there is no such image: check the "
    .. "name, or give username and password", self.ref.registry)
end

local function host_of(authority) return (authority:gsub(":%d*$", ""):lower()) end

-- Whether this may be the place for tokens: without TLS only where the registry has none either, and is on that host.
-- Else any registry could have us ask whatever is near us, and send us credentials through the open.
function session:trusts(realm)
  if realm:find("^https://") then return true end
  local authority = realm:match("^http://([^/?#]*)")
  return authority ~= nil and self.base:find("^http://") ~= nil and host_of(authority) == host_of(self.ref.registry)
end

-- Asks the token server, which the registry names, for a token.
function session:fetch_token(challenge)
  local realm = challenge.realm or ""
  local function refuse_realm()
    self:fail("protocol", nil, "%s names %s as the place for tokens, which is no URL for that",
      self.ref.registry, quote(realm))
  end
  local authority = realm:match("^https?://([^/?#]+)")
  if not authority or authority:find("@", 1, true) or realm:find("[%c%s]") then refuse_realm() end
  local known = self:credentials()
  if not self:trusts(realm) then
    local place = quote(realm:match("^http://[^/?#]*"))
    if known then
      self:fail("auth", nil, "%s wants the credentials sent to %s without encryption, which is refused",
        self.ref.registry, place)
    end
    self:fail("protocol", nil, "%s names %s as the place for tokens, which is neither https nor its own host",
      self.ref.registry, place)
  end
  local scope = challenge.scope or ("repository:%s:pull"):format(self.ref.repository)
  local request = { url = realm, max_bytes = TOKEN_BYTES * 2 }
  if known and known.identity_token then
    request.method = "POST"
    request.headers = { ["Content-Type"] = "application/x-www-form-urlencoded" }
    request.body = form { "grant_type", "refresh_token", "service", challenge.service, "client_id", "bough",
      "scope", scope, "refresh_token", known.identity_token }
  else
    request.url = realm .. (realm:find("?", 1, true) and "&" or "?")
      .. form { "service", challenge.service, "scope", scope }
    if known then request.username, request.password = known.username, known.password end
  end
  local good, answer = pcall(self.persist, self, function()
    local given = self.client:request(request)
    -- what a refusal says may be anybody's words: the registry chose whom we asked
    return { status = given.status, headers = given.headers, body = given.status == 200 and given.body or nil,
      from = "the token server" }
  end)
  if not good then
    if errors.is(answer, "invalid") then refuse_realm() end
    error(answer, 0)
  end
  if answer.status == 401 or answer.status == 403 or answer.status == 400 then
    self:refuse_login(answer.status)
  end
  if answer.status ~= 200 then self:explain(answer) end
  local value = json.read(answer.body)
  local token = value and (value.token or value.access_token)
  if type(token) ~= "string" or token == "" or #token > TOKEN_BYTES or token:find("[%c%s]") then
    self:fail("protocol", nil, "the token server of %s answers without a token", self.ref.registry)
  end
  self.token = token
end

-- After a 401: finds out who to be.
function session:authenticate(answer)
  local found = challenges(answer.headers["www-authenticate"] or "")
  if found.bearer then
    self:fetch_token(found.bearer)
  elseif found.basic then
    local known = self:credentials()
    if not known or not known.username or self.basic then self:refuse_login(401) end
    self.basic = true
  else
    self:fail("auth", 401, "%s wants credentials in a way that is not supported", self.ref.registry)
  end
end

-- Requests -----------------------------------------------------------------------------------------

-- What the registry says itself, cut to size. Whatever it repeats of what only we and it should know goes.
local function own_words(self, body)
  local value = json.read(body or "")
  local first = value and type(value.errors) == "table" and value.errors[1]
  local text = type(first) == "table" and (first.message or first.code)
  if type(text) ~= "string" or text == "" then return "" end
  local known = self.known or {}
  for _, secret in pairs { self.token, known.password, known.identity_token } do
    local at, stop = text:find(secret, 1, true)
    while at do
      text = text:sub(1, at - 1) .. "***" .. text:sub(stop + 1)
      at, stop = text:find(secret, at + 3, true)
    end
  end
  return " (" .. quote(text) .. ")"
end

--- Raises what an answer that is none stands for.
---@param answer table `from`: who gave it, unless that is the registry
function session:explain(answer)
  local status, words = answer.status, own_words(self, answer.body)
  local who = answer.from or self.ref.registry
  if status == 401 then self:refuse_login(status) end
  if status == 403 then
    self:fail("denied", status, "%s does not allow it%s: check name and credentials", who, words)
  elseif status == 404 then
    self:fail("not_found", status, "there is no such image at %s%s", who, words)
  elseif status == 429 then
    self:fail("api", status, "%s has had too many requests%s: try later, or with credentials", who, words)
  end
  local hint = ""
  if status == 400 and self.base:find("^http://") and is_local(self.ref.registry) then
    hint = ": a registry on this machine is asked over plain HTTP, which one with TLS does not take"
  end
  self:fail("api", status, "%s answers with status %d%s%s", who, status, words, hint)
end

local function send(self, request, on_tick)
  request.stall_timeout = self.stall_timeout
  if not on_tick then return self.client:request(request) end
  local transfer <close> = self.client:start(request)
  while true do
    local answer = transfer:wait(0.1)
    on_tick()
    if answer then return answer end
  end
end

--- One request below the repository, as whoever we are; asks for a new token once. Waits.
---@param path string "/manifests/latest"
---@param request table for client:request
---@param on_tick function? called every now and then, and at the end
---@return table answer of any status but 401
function session:once(path, request, on_tick)
  local renewed = false
  while true do
    request.url = ("%s/v2/%s%s"):format(self.base, self.ref.repository, path)
    request.bearer, request.username, request.password = self.token, nil, nil
    if self.basic then request.username, request.password = self.known.username, self.known.password end
    local answer = send(self, request, on_tick)
    self.answered = true
    if answer.status ~= 401 then return answer end
    -- whoever we were sent on to does not get to say where our credentials go
    if answer.url ~= request.url then
      self:fail("auth", 401, "%s sends us on to somebody who wants credentials", self.ref.registry)
    end
    if renewed then self:refuse_login(401) end
    renewed = true
    self:authenticate(answer)
  end
end

--- Calls a function that makes a request until its answer is not a passing trouble. Waits.
function session:persist(fn)
  local again = self:patience()
  while true do
    local good, answer = pcall(fn)
    if not good and not self.answered and self.bases[1] and errors.is(answer, "transport") then
      self.base = table.remove(self.bases, 1)
    elseif good and not self.is_passing(answer) then
      return answer
    elseif not good and not (errors.is(answer) and self.is_passing(answer)) then
      error(answer, 0)
    elseif not again(answer) then
      if good then self:explain(answer) end
      error(answer, 0)
    end
  end
end

--- A document: its text and the answer. Waits.
---@param path string
---@param most integer bytes
---@param headers table?
---@return string
---@return table answer
function session:document(path, most, headers)
  local good, answer = pcall(self.persist, self, function()
    return self:once(path, { headers = headers, max_bytes = most })
  end)
  if not good then
    if errors.is(answer, "resource") and answer.op == "http" and not answer.errno then
      self:fail("protocol", nil, "%s sends more than the %d bytes that are due", self.ref.registry, most)
    end
    error(answer, 0)
  end
  if answer.status ~= 200 then self:explain(answer) end
  if (answer.headers["content-type"] or ""):lower():find("^%s*text/html") then
    self:fail("protocol", nil, "%s answers with a web page: is it a registry, and is nothing in between?",
      self.ref.registry)
  end
  return answer.body, answer
end

return M
