--- Opening engines of ConTree services: "contree://", and URLs of servers that speak its API.

local check = require "bough.check"
local errors = require "bough.error"
local apis = require "bough.contree.api"
local driver = require "bough.contree.driver"
local profile = require "bough.contree.profile"

local M = {}

local raise, quote = errors.raise, errors.quote

local known = {
  "token", "project", "profile", "ca_file", "verify", "proxy", "timeout", "connect_timeout", "retry",
  "max_concurrency", "log", "insecure", "limits", "user_agent",
}
local known_of_profiles = { "url", table.unpack(known) }

-- Names from elsewhere that edit distance would not find.
local aliases = {
  api_key = "token", key = "token", bearer = "token", base_url = "url", host = "url", ca = "ca_file",
  cacert = "ca_file", concurrency = "max_concurrency", identity = "user_agent", logger = "log", tls_verify = "verify",
}

local function check_options(opts, names)
  if type(opts) ~= "table" then raise("invalid", "open", "options must be a table, got %s", quote(opts)) end
  local is_known = {}
  for _, name in ipairs(names) do is_known[name] = true end
  for name in pairs(opts) do
    local meant = type(name) == "string" and aliases[name] or nil
    if not is_known[name] then
      errors.unknown("open", "option", name, names, meant and is_known[meant] and meant or nil)
    end
  end
end

local function seconds(value, name)
  if value == nil or (type(value) == "number" and value > 0) then return value end
  raise("invalid", "open", "%s must be a positive number of seconds, got %s", name, quote(value))
end

local function text(value, name)
  if value ~= nil and (type(value) ~= "string" or value:find("\0", 1, true)) then
    raise("invalid", "open", "%s must be a string, got %s", name, quote(value))
  end
  return value
end

-- Bytes that a sandbox may change; the service has no other limits.
local function disk_of(limits)
  limits = check.limits(limits, "open")
  for name in pairs(limits or {}) do
    if name ~= "disk" then
      raise("unsupported", "open", "limits.%s: the service has no such limit: it knows only disk", name)
    end
  end
  return limits and limits.disk
end

local function retry_of(retry)
  if retry == nil or retry == true or retry == false then return retry end
  if type(retry) ~= "table" then
    raise("invalid", "open", "retry must be { attempts = n } or false, got %s", quote(retry))
  end
  errors.check_keys("open", retry, { "attempts", "unsafe", "pauses", "per_second" })
  return retry
end

--- Opens an engine's driver. Makes no request; reads profile files, and so waits.
---@param scheme "contree"|"https"|"http"
---@param rest string what follows "://": the name of a profile, or host and path
---@param opts { token: string?, project: string|false|nil, profile: string?, url: string?, ca_file: string?,
---  verify: boolean?, proxy: string?, timeout: number?, connect_timeout: number?,
---  retry: bough.contree.retry|boolean|nil, max_concurrency: integer?,
---  log: fun(level: string, message: string, fields: table)?, insecure: boolean?, limits: { disk: integer|string }?,
---  user_agent: string? } url: with "contree" only; timeout: seconds of one request with all its attempts, default 300;
---  insecure: the token may go over plain http to another machine; limits: for runs that say nothing
---@return bough.contree.driver
function M.open(scheme, rest, opts)
  local is_address = scheme ~= "contree"
  check_options(opts, is_address and known or known_of_profiles)
  local name = opts.profile
  if not is_address and rest ~= "" then
    local given = rest:gsub("/+$", "")
    if given == "" or given:find "[/?#@:]" then
      raise("invalid", "open", 'contree://%s: write "contree://", "contree://profile", or the URL of a server',
        given:find("@", 1, true) and "..." or given)
    elseif name ~= nil and name ~= given then
      raise("invalid", "open", "two profiles given: %s and profile = %s", quote(given), quote(name))
    end
    name = given
  end
  local url
  if is_address then url = profile.base_url(scheme .. "://" .. rest, "the URL", "open") else url = opts.url end
  for _, flag in ipairs { "verify", "insecure" } do check.boolean(opts[flag], "open", flag) end
  check.callback(opts.log, "open", "log")
  local concurrency = check.count(opts.max_concurrency, "open", "max_concurrency", 1)
  local disk = disk_of(opts.limits)
  local found = check.named("open", profile.load, {
    url = url, token = opts.token, project = opts.project, profile = name, insecure = opts.insecure, log = opts.log,
  })
  local api = check.named("open", apis.new, {
    url = found.url, token = found.token, project = found.project, user_agent = text(opts.user_agent, "user_agent"),
    ca_file = text(opts.ca_file, "ca_file"), verify = opts.verify, proxy = text(opts.proxy, "proxy"),
    retry = retry_of(opts.retry), timeout = seconds(opts.timeout, "timeout"),
    connect_timeout = seconds(opts.connect_timeout, "connect_timeout"), log = opts.log, insecure = opts.insecure,
  })
  return driver.new(api, {
    max_concurrency = math.tointeger(concurrency), bounded = concurrency ~= nil, disk = disk,
  })
end

return M
