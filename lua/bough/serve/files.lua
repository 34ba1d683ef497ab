--- Files that clients upload, to be put into runs: contents in the store, and what is told of them in the journal.

local core = require "bough.core"
local filespec = require "bough.filespec"
local json = require "bough.json"
local http = require "bough.serve.http"
local validate = require "bough.serve.validate"
local wire = require "bough.contree.wire"

local M = {}

local MICROSECOND = 1e-6

local function describe(row)
  return {
    uuid = row.uuid, sha256 = row.sha256, size = row.size, created_at = wire.rfc3339(row.created),
    updated_at = wire.rfc3339(row.updated),
  }
end

local function too_large(most)
  error(http.problem(413, ("the file is larger than %d bytes"):format(most), { kind = "resource" }), 0)
end

-- The body into a file; its digest and size.
local function receive(request, path, most)
  local sink <close> = core.sink(path)
  for piece in request:chunks() do
    if sink.size + #piece > most then too_large(most) end
    sink:write(piece)
  end
  return sink:sha256(), sink.size
end

--- POST /files: the body is the content. It goes to the disk as it comes; the same content has one UUID.
function M.upload(app, request)
  local most = request.token.limits.upload_max_bytes
  local announced = math.tointeger(tonumber(request.headers["content-length"]))
  if announced and announced > most then too_large(most) end
  local sha256, size
  do
    local directory = core.fs.temp_dir(app.scratch .. "/upload")
    local _ <close> = setmetatable({}, { __close = function() core.fs.remove(directory) end })
    local path = directory .. "/content"
    sha256, size = receive(request, path, most)
    app.box.files:upload(filespec.file(path))
  end
  local now = core.time()
  local row = app.journal:put_file {
    uuid = core.uuid(), sha256 = sha256, size = size, created = now, updated = now,
  }
  request:reply(201, { uuid = row.uuid, sha256 = row.sha256, size = row.size })
end

local list_params = validate.listing()

--- GET /files
function M.list(app, request)
  local params = validate.params(request.params, list_params)
  local rows = json.array {}
  for i, row in ipairs(app.journal:files {
    since = params.since, before = params["until"] and params["until"] + MICROSECOND, limit = params.limit,
    offset = params.offset,
  }) do
    rows[i] = describe(row)
  end
  request:reply(200, { files = rows })
end

--- GET and HEAD /files/{sha256}. A content that the store has let go of is unknown: it has to be sent again.
function M.get(app, request, sha256)
  local hex = #sha256 == 64 and not sha256:find "%X" and sha256:lower()
  local row = hex and app.journal:file(hex)
  if not row or not app.box.files:exists(hex) then
    error(http.problem(404, ("file %s not found"):format(sha256), { kind = "not_found" }), 0)
  end
  request:reply(200, describe(row))
end

return M
